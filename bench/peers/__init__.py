"""The same work for restq and for what people would use instead, in one run on one machine.

    pip install -e '.[speed,bench]'; apt-get install beanstalkd redis-server

`python -m bench.peers --help` tells what can be measured. `peer.py` says what a peer is, `roster.py` who takes part.
"""
