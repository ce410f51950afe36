#!/usr/bin/env bash
# A throw-away SLURM cluster of several nodes on one machine, for tests and to try things. Needs root, no systemd.
#
#   mini_cluster.sh packages           install Debian's or Ubuntu's packages; nothing to do where they are there
#   mini_cluster.sh start              two nodes of two fake GPUs each; nothing to do where it runs
#   eval "$(mini_cluster.sh env)"      what a shell needs to see it
#   mini_cluster.sh kill-node node2    pull the plug on a node; start-node node2 puts it back
#   mini_cluster.sh status | logs | stop
#
# Everything lies in one folder, but for marked lines in /etc/hosts, which `stop` takes back. Several clusters run
# side by side if their folders and ports differ. Settings (environment variables):
#   MINI_SLURM_DIR          its folder, a short path                  [/tmp/mini-cluster]
#   MINI_SLURM_PORT         first of the 120 ports it may use         [16800]
#   MINI_SLURM_NODES        nodes                                     [2]
#   MINI_SLURM_CPUS         CPUs that each claims                     [4]
#   MINI_SLURM_MEM          MiB that each claims                      [4096]
#   MINI_SLURM_GPUS         fake GPUs of each                         [2]
#   MINI_SLURM_ACCOUNTING   dbd (slurmdbd and MariaDB), none, auto    [auto: dbd where it is installed]
#   MINI_SLURM_MAX_ARRAY    MaxArraySize                              [1001]
#   MINI_SLURM_MIN_JOB_AGE  seconds that the controller remembers     [3600]
set -euo pipefail

DIR=${MINI_SLURM_DIR:-/tmp/mini-cluster}
PORT=${MINI_SLURM_PORT:-16800}
NODES=${MINI_SLURM_NODES:-2}
CPUS=${MINI_SLURM_CPUS:-4}
MEM=${MINI_SLURM_MEM:-4096}
GPUS=${MINI_SLURM_GPUS:-2}
ACCOUNTING=${MINI_SLURM_ACCOUNTING:-auto}
MARK="# mini-cluster $DIR"
PACKAGES=(slurmctld slurmd slurm-client slurm-wlm-basic-plugins munge slurmdbd mariadb-server)
export SLURM_CONF=$DIR/slurm.conf
export PATH=$PATH:/usr/sbin:/sbin

say() { printf 'mini-cluster: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }
need_root() { [ "$(id -u)" = 0 ] || die "must be run as root"; }

alive() { # is the process named in file $1 there, and no zombie?
    local pid state
    [ -s "$1" ] || return 1
    pid=$(<"$1")
    state=$(awk '/^State:/ {print $2}' "/proc/$pid/status" 2>/dev/null) || return 1
    [ -n "$state" ] && [ "$state" != Z ]
}
not_alive() { ! alive "$1"; }

wait_for() { # up to $1 tenths of a second for a command to succeed
    local tries=$1
    shift
    until "$@" >/dev/null 2>&1; do
        tries=$((tries - 1))
        [ "$tries" -gt 0 ] || return 1
        sleep 0.1
    done
}

port_open() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

end() { # ask the daemon of pid file $1 to end, then make it
    if alive "$1"; then
        kill "$(<"$1")" 2>/dev/null || true
        wait_for 50 not_alive "$1" || kill -9 "$(<"$1")" 2>/dev/null || true
    fi
    rm -f "$1"
}

node_names() { local k; for k in $(seq "$NODES"); do echo "node$k"; done; }

pull_plug() {
    if alive "$DIR/run/$1.pid"; then kill -9 "$(<"$DIR/run/$1.pid")"; fi # --kill-child takes the node's processes along
    rm -f "$DIR/run/$1.pid"
}

# /etc/hosts is a mount in containers: written in place. Lines of clusters whose folder is gone are taken out, too.
hosts() { # on | off
    (
        flock 9
        local rest
        rest=$(while IFS= read -r line; do
            case $line in
            *"$MARK") ;;
            *"# mini-cluster "*) [ ! -d "${line##*# mini-cluster }" ] || printf '%s\n' "$line" ;;
            *) printf '%s\n' "$line" ;;
            esac
        done </etc/hosts)
        printf '%s\n' "$rest" >/etc/hosts
        if [ "$1" = on ]; then
            local node
            for node in "$(hostname -s)" $(node_names); do echo "127.0.0.1 $node $MARK" >>/etc/hosts; done
        fi
    ) 9>/var/lock/mini-cluster.lock
}

write_config() {
    local k file spare=(null zero full random urandom tty) gres="" accounting preempt node
    if [ "$GPUS" -gt 0 ]; then # Slurm wants a character device per GPU: copies of /dev/null, or others where mknod is forbidden
        : >"$DIR/gres.conf"
        for k in $(seq 0 $((GPUS - 1))); do
            file=$DIR/dev/gpu$k
            [ -c "$file" ] || mknod -m 666 "$file" c 1 3 2>/dev/null || file=/dev/${spare[k]}
            echo "Name=gpu Type=fake File=$file" >>"$DIR/gres.conf"
        done
        gres="Gres=gpu:fake:$GPUS"
    fi
    accounting="AccountingStorageType=accounting_storage/none"
    if [ "$ACCOUNTING" = dbd ]; then
        accounting="AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=$((PORT + 19))
AccountingStoragePass=$DIR/munge/socket
AccountingStorageTRES=gres/gpu"
    fi
    case $(slurmctld -V) in # a preempted job gets the signal it asked for; the key moved
    *" 20."* | *" 21."* | *" 22."*) preempt="SlurmctldParameters=preempt_send_user_signal" ;;
    *)
        preempt="PreemptParameters=send_user_signal"
        echo "CgroupPlugin=disabled" >"$DIR/cgroup.conf"
        ;;
    esac
    cat >"$DIR/slurm.conf" <<EOF
ClusterName=mini
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmctldPort=$((PORT + 17))
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# cred_expire is also how long a requeued job waits before it runs again
AuthInfo=socket=$DIR/munge/socket,cred_expire=5
CredType=cred/munge
MpiDefault=none
# no cgroups: works in containers. Over-memory steps are found by looking each second.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
$accounting
GresTypes=gpu
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=$((MEM / CPUS))
SchedulerType=sched/backfill
SchedulerParameters=sched_min_interval=0,bf_interval=1,batch_sched_delay=0
ReturnToService=2
SlurmdParameters=config_overrides
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
$preempt
KillWait=2
MaxArraySize=${MINI_SLURM_MAX_ARRAY:-1001}
MinJobAge=${MINI_SLURM_MIN_JOB_AGE:-3600}
SlurmctldTimeout=10
SlurmdTimeout=5
StateSaveLocation=$DIR/state
SlurmctldPidFile=$DIR/run/slurmctld.pid
SlurmctldLogFile=$DIR/log/slurmctld.log
SlurmdPidFile=$DIR/run/slurmd.%n.pid
SlurmdLogFile=$DIR/log/slurmd.%n.log
SlurmdSpoolDir=$DIR/spool/%n
$(for node in $(node_names); do
        echo "NodeName=$node NodeAddr=127.0.0.1 Port=$((PORT + 100 + ${node#node})) CPUs=$CPUS RealMemory=$MEM $gres"
    done)
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=5
PartitionName=high Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
PartitionName=short Nodes=ALL MaxTime=10 State=UP PriorityTier=1 PreemptMode=OFF
EOF
    cat >"$DIR/slurmdbd.conf" <<EOF
AuthType=auth/munge
AuthInfo=socket=$DIR/munge/socket
DbdHost=$(hostname -s)
DbdAddr=127.0.0.1
DbdPort=$((PORT + 19))
SlurmUser=root
LogFile=$DIR/log/slurmdbd.log
PidFile=$DIR/run/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=$((PORT + 6))
StorageUser=root
StorageLoc=slurm_acct_db
EOF
    chmod 600 "$DIR/slurmdbd.conf"
}

start_munge() {
    (umask 077 && head -c 1024 /dev/urandom >"$DIR/munge/key")
    munged --key-file="$DIR/munge/key" --socket="$DIR/munge/socket" --num-threads=4 --force \
        --pid-file="$DIR/run/munged.pid" --log-file="$DIR/log/munged.log" --seed-file="$DIR/munge/seed" 2>/dev/null
    wait_for 50 munge -n --socket="$DIR/munge/socket"
}

start_accounting() {
    [ "$ACCOUNTING" = dbd ] || return 0
    mariadb-install-db --no-defaults --user=root --datadir="$DIR/db" --skip-test-db \
        --auth-root-authentication-method=normal --innodb-log-file-size=8M --innodb-flush-method=nosync \
        >"$DIR/log/install-db.log" 2>&1
    setsid mariadbd --no-defaults --user=root --datadir="$DIR/db" --socket="$DIR/run/mariadb.sock" \
        --pid-file="$DIR/run/mariadb.pid" --bind-address=127.0.0.1 --port=$((PORT + 6)) --skip-grant-tables \
        --skip-log-bin --performance-schema=off --innodb-buffer-pool-size=32M --innodb-log-file-size=8M \
        --innodb-flush-log-at-trx-commit=0 --innodb-flush-method=nosync --innodb-doublewrite=0 \
        --innodb-lock-wait-timeout=900 --log-error="$DIR/log/mariadb.log" </dev/null >/dev/null 2>&1 &
    wait_for 200 port_open $((PORT + 6)) || return 1
    slurmdbd
    wait_for 200 port_open $((PORT + 19)) || return 1
    timeout 30 sacctmgr -n -i add cluster mini >/dev/null # or slurmctld ends at once
}

start_node() {
    if alive "$DIR/run/$1.pid"; then return; fi
    mkdir -p "$DIR/spool/$1"
    # Its own host name and processes. bash is its first process: it reaps what slurmd's step managers leave behind.
    setsid unshare --uts --pid --mount-proc --fork --kill-child bash -c \
        'hostname "$1"; slurmd -D -N "$1" & while kill -0 $! 2>/dev/null; do wait; done' slurm-node "$1" \
        </dev/null >>"$DIR/log/$1.out" 2>&1 9>&- &
    echo $! >"$DIR/run/$1.pid"
}

idle_nodes() { [ "$(timeout 5 sinfo -h -p debug -t idle -o %D)" = "$NODES" ]; }

start() {
    need_root
    local tool node
    for tool in munged slurmctld slurmd srun unshare; do
        command -v $tool >/dev/null || die "$tool is missing: run '$0 packages'"
    done
    if alive "$DIR/run/slurmctld.pid"; then status; return; fi
    unshare --uts --pid --fork --mount-proc true 2>/dev/null || die "this machine does not let a node have processes of its own"
    [ ${#DIR} -le 80 ] || die "$DIR: too long a path for a socket"
    [[ $DIR != *[[:space:]]* ]] || die "$DIR: slurm.conf takes no path with spaces"
    if [ "$ACCOUNTING" = auto ]; then
        ACCOUNTING=none
        if command -v slurmdbd >/dev/null && command -v mariadbd >/dev/null; then ACCOUNTING=dbd; fi
    fi
    rm -rf "$DIR"
    mkdir -p "$DIR"/{run,log,state,spool,munge,db,dev}
    chmod 755 "$DIR" "$DIR/munge"
    printf 'NODES=%s\nACCOUNTING=%s\n' "$NODES" "$ACCOUNTING" >"$DIR/settings"
    hosts on
    write_config
    trap 'tail -n 5 "$DIR"/log/*.log >&2 || true; stop; exit 1' ERR # nothing stays behind of half a cluster
    start_munge
    start_accounting
    slurmctld
    wait_for 100 port_open $((PORT + 17))
    for node in $(node_names); do start_node "$node"; done
    wait_for 200 idle_nodes
    trap - ERR
    status
}

load_settings() { if [ -f "$DIR/settings" ]; then . "$DIR/settings"; fi; }

stop() {
    need_root
    load_settings
    local node name
    for node in $(node_names); do pull_plug "$node"; done
    for name in slurmctld slurmdbd mariadb munged; do end "$DIR/run/$name.pid"; done
    rm -rf "$DIR" # job numbers start again at 1: nothing may remember the old ones
    hosts off
    say "stopped"
}

status() {
    load_settings
    alive "$DIR/run/slurmctld.pid" || { say "not running"; return 3; }
    say "up in $DIR, accounting: $ACCOUNTING"
    sinfo -N -p debug -o '%8N %10T %5c %8m %14G %E'
}

packages() {
    local missing=() package
    command -v apt-get >/dev/null || die "apt-get is missing: install Slurm (${PACKAGES[*]}) as this system does"
    for package in "${PACKAGES[@]}"; do
        [ "$(dpkg-query -W -f '${Status}' "$package" 2>/dev/null)" = "install ok installed" ] || missing+=("$package")
    done
    if [ ${#missing[@]} = 0 ]; then return; fi
    need_root
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

case ${1:-} in
packages) packages ;;
start) start ;;
stop) stop ;;
status) status ;;
env) echo "export SLURM_CONF=$SLURM_CONF PATH=\$PATH:/usr/sbin:/sbin" ;;
kill-node) need_root; pull_plug "${2:?name a node}" ;;
start-node) need_root; start_node "${2:?name a node}" ;;
logs) tail -n "${2:-40}" "$DIR"/log/* ;;
*) sed -n '2,/^set -euo/{/^#/s/^# \{0,1\}//p}' "$0" >&2; exit 2 ;;
esac
