"""The same work for restq and for what people would use instead, in one run on one machine.

    pip install -e '.[speed,bench]'
    apt-get install beanstalkd redis-server

All of it, on a machine that does nothing else; then the rows in which restq has to be so many times another:

    python -m bench.peers --works single,worker,bulk,fill --leased 0 --repeat 5 --seconds 120 --json one.json
    python -m bench.peers --works bulk,cycle --data 100 --repeat 3 --seconds 600 --json many.json \\
        --peers restq,restq-2,beanstalkd,beanstalkd-b,beanstalkd-f0,nats
    python -m bench.peers.plots one.json many.json DIR
    python -m bench.peers.targets --seconds 120 --json targets.json

The second adds up to a million jobs that wait or are leased to each server before it measures, some of which take
many minutes for that. `peer.py` says what a peer is, and `roster.py` who takes part: a further client of restq is a
class in `restq_server.py` and a row there. Where a call promises that a job is synced, the peer was seen to sync: once
for each single add, and at least once for each job that is taken and finished.
"""
