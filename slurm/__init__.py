"""Run a call, in one process or a process for each rank, and know nothing of what it does.

slurm.call.Call           what runs: a function by name, its argument, its environment
slurm.request.Request     what it asks for: nodes, ranks, GPUs, time
slurm.here.run_here       in fresh processes that this one waits for
slurm.local.Local         in processes that outlive this one
slurm.cluster.Slurm       as jobs of a SLURM cluster, by submitit
"""
