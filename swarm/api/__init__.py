"""SwarmKit's messages under one name: ``from swarm import api; api.Task``. Raft's own are in ``api.raftpb``."""

from swarm.api import raftpb_pb2 as raftpb
from swarm.api.ca_pb2 import *
from swarm.api.control_pb2 import *
from swarm.api.discovery_pb2 import *
from swarm.api.dispatcher_pb2 import *
from swarm.api.health_pb2 import *
from swarm.api.logbroker_pb2 import *
from swarm.api.objects_pb2 import *
from swarm.api.raft_pb2 import *
from swarm.api.resource_pb2 import *
from swarm.api.snapshot_pb2 import *
from swarm.api.specs_pb2 import *
from swarm.api.types_pb2 import *
from swarm.api.watch_pb2 import *

__all__ = ["raftpb"]
