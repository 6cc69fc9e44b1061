#!/usr/bin/env bash
# A Slurm cluster of one node on this machine, for tests: slurm.sh start|stop FOLDER
#
# As root on Debian or Ubuntu, where the packages slurm-wlm and munge are installed if they are not
# there. State, keys, sockets and logs lie in FOLDER; the configuration must be in /etc/slurm, since
# job steps are started without SLURM_CONF, and one that is there already is left alone.
# Two CPUs, 4 GB to hand out, and one GPU that is none. Exit code 77: there can be no cluster here.
set -euo pipefail

# Daemons are where not every user looks.
PATH=$PATH:/usr/sbin:/sbin
command=$1 folder=$(realpath -m "$2")
cpus=${SLURM_CPUS:-2} memory=${SLURM_MEM:-4000}
daemons=(slurmd slurmctld munged)
etc=/etc/slurm
mark="# Written by the tests of anomics."

stop() {
    # Jobs outlive the daemons. A controller of another cluster is not asked.
    if [ -s "$folder/slurmctld.pid" ] && kill -0 "$(cat "$folder/slurmctld.pid")" 2>/dev/null; then
        scancel --user root || true
        for _ in $(seq 20); do
            [ -z "$(squeue --noheader)" ] && break
            sleep 0.5
        done
    fi
    for daemon in "${daemons[@]}"; do
        [ -s "$folder/$daemon.pid" ] && kill "$(cat "$folder/$daemon.pid")" 2>/dev/null || true
    done
    grep -qsF "$mark" "$etc/slurm.conf" && rm "$etc"/{slurm,gres,cgroup}.conf || true
}

cannot() {
    echo "slurm.sh: $1"
    exit 77
}

install_packages() {
    type slurmctld slurmd munged sbatch >/dev/null 2>&1 && return
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -qq --no-install-recommends slurm-wlm slurm-wlm-basic-plugins munge >/dev/null
}

# The node is named after this host, the only name that is sure to resolve.
configure() {
    local host
    host=$(hostname -s)
    mkdir -p "$etc" "$folder"/{state,spool,log}
    head -c 1024 /dev/urandom >"$folder/munge.key"
    chmod 400 "$folder/munge.key"
    # slurmd asks of a GPU only that its file is there.
    echo "NodeName=$host Name=gpu Type=none File=/dev/null" >"$etc/gres.conf"
    # From 23.11 on slurmd looks for cgroups unless told; before, it does not know the word.
    local known=23.11 version
    version=$(slurmctld -V | grep -o '[0-9.]*$')
    if [ "$(printf '%s\n' $known "$version" | sort -V | head -1)" = $known ]; then
        echo "CgroupPlugin=disabled" >"$etc/cgroup.conf"
    else
        echo "ConstrainCores=no" >"$etc/cgroup.conf"
    fi
    cat >"$etc/slurm.conf" <<CONF
$mark
ClusterName=anomics
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=16817
SlurmdPort=16818
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdLogFile=$folder/log/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
# Memory is handed out, and a job that takes more is killed: looked at every second.
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=1
JobAcctGatherParams=OverMemoryKill
# No database: finished jobs stay in the controller's memory for a while.
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc=$folder/log/jobs.log
MinJobAge=600
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
KillWait=5
ReturnToService=2
MpiDefault=none
GresTypes=gpu
NodeName=$host NodeAddr=127.0.0.1 CPUs=$cpus RealMemory=$memory Gres=gpu:none:1
PartitionName=cpu Nodes=$host Default=YES MaxTime=240
PartitionName=gpu Nodes=$host MaxTime=240
CONF
}

start() {
    [ "$(id -u)" = 0 ] || cannot "starting the daemons needs root"
    install_packages || cannot "slurm-wlm and munge cannot be installed (Debian or Ubuntu)"
    stop
    [ ! -e "$etc/slurm.conf" ] || cannot "$etc/slurm.conf is another cluster's"
    configure
    munged --force --key-file "$folder/munge.key" --socket "$folder/munge.socket" \
        --pid-file "$folder/munged.pid" --log-file "$folder/log/munged.log" \
        --seed-file "$folder/munge.seed"
    slurmctld -c
    slurmd -c
    for _ in $(seq 60); do
        [ "$(sinfo --noheader --format %T 2>/dev/null | sort -u)" = idle ] && return
        sleep 0.5
    done
    echo "slurm.sh: the node does not come up; see $folder/log"
    stop
    exit 1
}

"$command"
