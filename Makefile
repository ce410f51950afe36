# make bench: the main job.  make test: the tests.  make stress: tests that take minutes.  make lint: style and types.
# make gpu-check: on a machine with a GPU, all that only one can show; again until it ends with exit code 0 or 1.
# make slurm-packages: what the tests of SLURM jobs need, as root.  make slurm-demo: a two-node experiment on it.
# Each but slurm-packages sets up .venv first.
.PHONY: bench test stress lint gpu-check slurm-packages slurm-demo
.DELETE_ON_ERROR:

PYTHON ?= python3
RUN := .venv/bin/python

bench: .venv/ready
	$(RUN) -m bench.run

test: .venv/ready
	OMP_WAIT_POLICY=PASSIVE $(RUN) -m pytest -n auto --dist worksteal

stress: .venv/ready
	OMP_WAIT_POLICY=PASSIVE $(RUN) -m pytest -m stress

lint: .venv/ready
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

gpu-check: .venv/ready
	OMP_WAIT_POLICY=PASSIVE $(RUN) -m bench.gpu_check

slurm-packages:
	slurm/mini_cluster.sh packages

slurm-demo: .venv/ready
	slurm/mini_cluster.sh start
	eval "$$(slurm/mini_cluster.sh env)" && OMP_WAIT_POLICY=PASSIVE $(RUN) -m bench.run configs/slurm_smoke.yaml \
	    --cluster slurm; code=$$?; slurm/mini_cluster.sh stop; exit $$code

# Made anew whenever the requirements change
.venv/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed, %s is %s; name one: make PYTHON=/path/to/python3.11" % (sys.executable, sys.version.split()[0]))'
	$(PYTHON) -m venv --clear .venv
	$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
