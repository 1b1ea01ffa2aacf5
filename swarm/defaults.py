"""All limits and defaults of the cluster, with units in the names (swarmkit: manager/state/raft, dispatcher, ca)."""

from __future__ import annotations

# --- log entries (swarmkit: manager/state/store/memory.go) ---
ENTRY_CHANGES_MAX = 200
ENTRY_BYTES_MAX = 1_100_000
TRANSACTION_BYTES_MAX = 1_572_864  # what stock peers accept in one entry

# --- Raft (swarmkit: manager/state/raft/raft.go; cluster-wide values live in Cluster.spec.raft) ---
RAFT_TICK_S = 1.0
RAFT_FAST_TICK_S = 0.1  # in groups without stock members
DISK_LOG_AHEAD_BYTES = 4_300_000  # what sqlite writes before its WAL starts over, plus a large entry
RAFT_ROUND_TRIP_SAMPLES = 9
RAFT_ANNOUNCE_S = 0.02  # how long a new commit index waits for an entry to travel with, in the same groups
RAFT_COMMIT_LAG_ENTRIES = 100  # entries that a restarted member must learn again to be committed
RAFT_PEER_QUEUE_MESSAGES_MAX = 4096
RAFT_PEER_CALLS_MAX = 64  # concurrent messages to one member
RAFT_JOIN_TIMEOUT_S = 25.0
PEER_CHECK_S = 30.0  # between checks whether the other members are stock managers
PEER_CHECK_SOON_S = 0.5  # the same, while some are unknown
PEER_CHECK_LEADERLESS_S = 5.0  # the same, while no leader is known
PEER_DIAL_PAUSE_S = 1.0  # between checks of the address that one member claims
PEER_DIAL_FAILURES_TOLD_MAX = 64  # wrong addresses that are remembered as already logged
RAFT_DIAL_TIMEOUT_S = 2.0
RAFT_SEND_TIMEOUT_S = 2.0
RAFT_SILENCE_S = 2.0  # a peer whose host confirms nothing for this long is dialled again
RAFT_FLOW_CHECK_S = 1.0  # between messages that need an answer, to a sideswarm manager
RAFT_FLOW_BYTES_MAX = 8 << 20  # waiting to be sent to one manager; further messages are dropped
RAFT_SNAPSHOT_CHUNK_BYTES = 4_000_000  # with the message around it below the 4 MiB that peers accept
RAFT_INCOMING_BYTES_MAX = 768 << 20  # incomplete snapshots and other messages, from all members
RAFT_INCOMING_STREAMS_PER_MEMBER_MAX = 256
RAFT_INCOMING_SILENCE_S = 120.0  # between two chunks of a message
FORWARD_RETRY_S = 0.1  # before a call that no leader accepted is tried again
RAFT_HEARTBEAT_TICKS = 1
RAFT_ELECTION_TICKS = 10
RAFT_SNAPSHOT_INTERVAL_ENTRIES = 10_000
RAFT_ENTRIES_FOR_SLOW_FOLLOWERS = 500
RAFT_KEEP_OLD_SNAPSHOTS = 0
RAFT_MESSAGE_BYTES_MAX = 4 << 20
RAFT_INFLIGHT_MESSAGES_MAX = 256
RAFT_APPEND_BYTES_MAX = 1 << 20  # entries in one message; a larger entry is sent alone
RAFT_UNCOMMITTED_BYTES_MAX = 64 << 20
RAFT_NUMBER_MAX = 1 << 62  # terms and indexes in messages; disks store 63 bits
RAFT_TERMS_AHEAD_MAX = 1 << 32  # elections that a member may have missed

# --- manager ---
MANAGERS_MAX = 51  # members of a Raft group; more only make it slower
ROLE_START_PAUSE_S = 0.2  # before a failed manager is started again; doubles
ROLE_START_PAUSE_MAX_S = 30.0
ROLE_CHANGE_WAIT_S = 5.0  # from a manager's removal to its worker certificate; SwarmKit waits 16 s
ROLE_RETRY_S = 5.0  # between attempts to remove a demoted manager
INBOX_CALLS_MAX = 12_000
CALL_PLACES_MAX = 8_200  # of the above, shared by nodes and this process
CALL_PLACES_ANONYMOUS_MAX = 1_500  # of the above, shared by callers without a certificate
CALL_PLACES_OWN = 8  # of a node, or of this process, whatever the others hold
CALL_PLACES_OWN_ANONYMOUS = 1  # of an address, whatever the others hold
CALL_SHARE_OF_NODE = 8  # a worker may hold an eighth of what is free, a manager with its API clients all of it
CALL_SHARE_OF_NETWORK = 4  # an address may hold a quarter of what is free for those without a certificate
CALL_DEADLINE_S = 20.0
NO_LEADER_WAIT_S = 3.5  # how long a call waits for a leader: at least two elections
LEADER_GONE_S = 1.5  # how long a forwarded call waits for its leader while no leader is known
HANDOVER_WAIT_S = 1.0  # how long a stopping leader waits for another leader
REMOTE_PORT = 2377
LEAVE_WAIT_S = 20.0  # how long a leaving node waits for its tasks to stop
ENGINE_PING_PERIOD_S = 1.0
ENGINE_PING_TIMEOUT_S = 5.0
ENGINE_PING_FAILURES = 2  # in a row, before this node leaves its session
ENGINE_PING_SOON_S = 0.25  # while the engine's socket refuses connections
ENGINE_GONE_S = 1.5  # how long it refuses before the managers are told: a restart of the engine may take less
FAREWELL_TIMEOUT_S = 1.0  # for the managers' answer to the last heartbeat
DISK_IDLE_S = 1.0  # without a write of the log, until its mark is synchronised
DISK_RETRY_S = 1.0  # after a failed write of the log, for example on a full disk

# --- time that this process did not see pass (swarm/attention.py) ---
ATTENTION_S = 0.5  # between two looks at the clock while others are judged by time
STALL_S = 1.0  # a process that looks so much later than it meant to has stood still
STALL_SETTLE_S = 0.5  # after a stall, to read what waits in the sockets before anything is decided
STALL_GRACE_S = 2.0  # after a stall, for an answer that was due meanwhile: it is read, or still to be made
RETURN_S = 19.0  # after a stall, for a node that had given up: a dial, the longest pause, a first message, a margin

# --- dispatcher (swarmkit: manager/dispatcher/dispatcher.go) ---
HEARTBEAT_PERIOD_S = 5.0
HEARTBEAT_PERIOD_MIN_S = 0.1
HEARTBEAT_JITTER_S = 0.5
HEARTBEAT_GRACE_PERIODS = 3
HEARTBEAT_GRACE_UNKNOWN_PERIODS = 6
ORPHAN_TASKS_AFTER_S = 24 * 3600.0
REGISTRATIONS_MAX = 3
REGISTRATION_WINDOW_S = 8.0
ASSIGNMENT_BATCH_S = 0.1
ASSIGNMENT_CHANGES_MAX = 100
STATUS_BATCH_S = 0.1
STATUS_BATCH_UPDATES_MAX = 10_000
STATUS_TEXT_CHARS_MAX = 4096
NODE_DESCRIPTION_BYTES_MAX = 256 << 10
TASK_STATUS_BYTES_MAX = 64 << 10
SESSIONS_PER_NODE_MAX = 4
MANAGER_WEIGHT = 10

# --- log broker (swarmkit: manager/logbroker) ---
LOG_SUBSCRIPTIONS_MAX = 1000
LOG_LISTENERS_PER_NODE_MAX = 4
LOG_RECONNECT_WAIT_S = 10.0
LOG_READER_BYTES = 1 << 20  # waiting for one reader of logs; while more waits, its nodes are held back

# --- agent (swarmkit: agent/) ---
SESSION_BACKOFF_BASE_S = 0.1
SESSION_BACKOFF_MAX_S = 8.0
SESSION_FIRST_MESSAGE_S = 5.0
RPC_DIAL_TIMEOUT_S = 5.0
DESCRIPTION_REFRESH_S = 20.0
DESCRIPTION_RETRY_S = 1.0  # after the engine failed to describe this node
TASKS_PER_NODE_MAX = 10_000
STATUS_UPDATES_PER_CALL_MAX = 1000
STATUS_CALL_TIMEOUT_S = 20.0
CANCEL_WAIT_S = 15.0
TASK_RETRY_BASE_S = 1.0
TASK_RETRY_MAX_S = 30.0
TASK_REMOVE_ATTEMPTS_MAX = 10

# --- orchestration (swarmkit: manager/orchestrator) ---
TASK_HISTORY_RETENTION_LIMIT = 5
RESTART_DELAY_S = 5.0
OLD_TASK_STOP_WAIT_S = 60.0
UPDATE_MONITOR_S = 5.0
UPDATE_PARALLELISM = 1
TASK_REAPER_PERIOD_S = 0.25
TASK_REAPER_DIRTY_MAX = 1000
TASK_REAPER_SLOTS_PER_PASS = 200
FAILURES_BEFORE_LAST_CHOICE = 5
FAILURE_WINDOW_S = 300.0
STOP_GRACE_PERIOD_S = 10.0
STAGE_BACKOFF_BASE_S = 1.0
STAGE_BACKOFF_MAX_S = 60.0
SCHEDULER_NODE_CHECKS_PER_PASS = 20_000
ENFORCER_NODES_PER_PASS = 500
SCHEDULER_MEMORIES_KEPT = 4
SCHEDULER_RETRY_PAUSE_PER_NODE_S = 1e-5

# --- the API on the network (moby: daemon/command) ---
API_HANDSHAKE_TIMEOUT_S = 10.0
API_HANDSHAKES_MAX = 1024  # running TLS handshakes; a new one replaces the oldest
API_HANDSHAKES_PER_ADDRESS_MAX = 64
API_ANONYMOUS_CONNECTIONS_PER_ADDRESS_PER_S_MAX = 200  # those that fail to authenticate count; a handshake costs 1 ms
API_ANONYMOUS_CONNECTIONS_PER_S_MAX = 500  # the same, from all addresses without a recently authenticated client
API_KNOWN_ADDRESSES_MAX = 1024
API_REFUSAL_LOG_S = 60.0  # between two log lines about one address
API_INSECURE_PAUSE_S = 1.0  # pause at a start that opens the API to everybody, so that users notice the warning

# --- certificates (swarmkit: ca/) ---
NODE_CERT_EXPIRY_S = 90 * 24 * 3600.0
NODE_CERT_EXPIRY_MIN_S = 3600.0
EXPIRED_RENEWAL_WINDOW_MAX_S = 30 * 24 * 3600.0  # after its end; also at most the certificate's lifetime
BLACKLIST_GRACE_S = EXPIRED_RENEWAL_WINDOW_MAX_S + 7 * 24 * 3600.0  # kept after a removed node's certificate ends
CERTIFICATE_ERROR_REPORT_S = 60.0  # between log lines about one node whose certificate is not valid
CERTIFICATE_ERROR_NODES_MAX = 1000  # nodes remembered for that
NODE_KEYS_ISSUED_MAX = 4  # keys of a node kept on record that it was issued and not seen to use
CLOCK_ASK_TIMEOUT_S = 2.0
JOIN_WAIT_S = 20.0
JOIN_RETRY_BASE_S = 0.1  # for a join that no client waits for any more; doubled after each failure
JOIN_RETRY_MAX_S = 30.0
CSR_BYTES_MAX = 16 << 10
CERTIFICATES_PER_PASS_MAX = 50  # a signature costs 0.25 ms
CERTIFICATE_WAITERS_MAX = 10_000
CERTIFICATE_CALL_TIMEOUT_S = 5.0
CERTIFICATE_ATTEMPTS_MAX = 5
CERTIFICATE_RETRY_S = 2.0
CERTIFICATE_CONFIRMATIONS_MAX = 3  # attempts to show managers a certificate that is on disk
CERTIFICATE_POLL_BASE_S = 1.0
CERTIFICATE_POLL_FACTOR_S = 1.0
CERTIFICATE_POLL_MAX_S = 30.0
ROOT_ROTATION_PERIOD_S = 3.0
ROOT_ROTATION_BATCH_NODES = 30
ROOT_ROTATION_REPORT_S = 60.0  # between log lines about the nodes that a rotation still waits for
EXTERNAL_CA_TIMEOUT_S = 5.0  # for each server
EXTERNAL_CA_REQUESTS_MAX = 8  # concurrent, while it works; one after a failure
EXTERNAL_CA_RETRY_BASE_S = 1.0  # doubled after each failure
EXTERNAL_CA_RETRY_MAX_S = 10.0

# --- objects ---
SECRET_BYTES_MAX = 512_000  # exclusive
CONFIG_BYTES_MAX = 1_024_000  # exclusive
SERVICE_NAME_CHARS_MAX = 63
REQUEST_PARTS_MAX = 20_000  # elements of lists and messages in one write; a large service has some hundred
SERVICE_REPLICAS_MAX = 100_000  # of one service, also completions of a job; sideswarmd --max-replicas
SECRET_NAME_CHARS_MAX = 64
CLUSTER_NAME = "default"
IMAGE_REFERENCE_CHARS_MAX = 1024
IMAGE_NAME_CHARS_MAX = 255
NANO_CPUS_MIN = 1_000_000
MEMORY_BYTES_MIN = 4 << 20
HEALTH_DURATION_MIN_NS = 1_000_000
TEMPLATE_DEPTH_MAX = 60
TEMPLATE_SPEC_STEPS_MAX = 5_000  # for all templates of a spec: 250 variables that name the node
TEMPLATE_SPEC_BYTES_MAX = 4 << 20  # of text that they read and write, four for each character that is not ASCII
TEMPLATE_PAYLOAD_STEPS_MAX = 100_000  # the same, for all secrets and configs of a task
TEMPLATE_PAYLOAD_BYTES_MAX = 32 << 20
TEMPLATE_SLOW_BYTES_FACTOR = 16  # for what is read character by character, such as escaping
TEMPLATE_NUMBER_CHARS_MAX = 1_000

# --- engine and executor (moby: daemon/cluster/executor/container) ---
ENGINE_CONNECT_TIMEOUT_S = 10.0
ENGINE_CALL_TIMEOUT_S = 60.0
ENGINE_CREATE_TIMEOUT_S = 300.0  # volume drivers may take their time
ENGINE_STOP_MARGIN_S = 60.0  # beyond the grace period
ENGINE_PULL_SILENCE_S = 600.0
ENGINE_CALLS_MAX = 64
ENGINE_LINE_BYTES_MAX = 8 << 20
EXECUTOR_PULLS_MAX = 3
EXECUTOR_CREATES_MAX = 8
EXECUTOR_RECONCILE_PERIOD_S = 15.0
EXECUTOR_RECHECK_S = 5.0  # a health verdict or a removal that we wait for
DISCOVERY_BATCH_S = 0.03  # between two messages to one node; what changes meanwhile is one message
DISCOVERY_BATCH_BYTES = 1 << 20  # to one node at a time, and one record more; below what a stream may have waiting
DISCOVERY_CHANGES_MAX = 500  # in one message
DISCOVERY_STREAMS_PER_NODE_MAX = 2
NETWORK_JOURNAL_S = 0.2  # between two writes of what a node knows of its networks
ATTACHMENTS_PER_NODE_MAX = 2_000  # of plain containers to networks of the swarm
ATTACH_TIMEOUT_S = 10.0  # for an address of a plain container that starts
ATTACHMENT_KEPT_S = 2.0  # an address that no container uses, for one that restarts
ATTACHMENT_CHECK_S = 0.5
EXECUTOR_RECONNECT_BASE_S = 0.1
EXECUTOR_RECONNECT_MAX_S = 5.0
SERVICE_WITHDRAWAL_S = 2.0  # between taking a task out of its services and stopping it
PAYLOAD_TMPFS_BYTES_MAX = 1 << 30
LOG_BYTES_PER_S = 10 << 20  # per task
LOG_BATCH_BYTES_MAX = 48 << 10  # below the window of a stream, so that a node that is held back has sent whole messages
LOG_SINK_MESSAGES_MAX = 1  # of one publication, waiting for the connection
LOG_LINE_BYTES_MAX = 1 << 20
LOG_CLOSE_TIMEOUT_S = 5.0

# --- gRPC on port 2377 (grpc-go's defaults where peers depend on them: message size, windows) ---
RPC_MESSAGE_BYTES_MAX = 4 << 20
RPC_MESSAGE_ANONYMOUS_BYTES_MAX = 32 << 10  # without a certificate, a peer can only request one
RPC_RESPONSE_BYTES_MAX = 256 << 20  # from a verified manager: a list of all tasks is one message
RPC_GRANT_BYTES_MAX = 16 << 20  # for messages longer than a window, together on one connection
RPC_STREAM_WINDOW_BYTES = 64 << 10
RPC_MANAGER_STREAM_WINDOW_BYTES = 1 << 20
RPC_CONNECTION_WINDOW_BYTES = 4 << 20
RPC_HEADER_LIST_BYTES_MAX = 16 << 10
RPC_HEADER_FRAMES_MAX = 16  # HEADERS and CONTINUATION of one block
RPC_STATUS_TEXT_BYTES_MAX = 4_096  # in headers at worst three times as long
RPC_STREAMS_ANONYMOUS_MAX = 16  # concurrent calls on a connection without a certificate
RPC_STREAMS_WORKER_MAX = 128
RPC_STREAMS_MANAGER_MAX = 32_768  # a follower forwards the calls of all its workers over one connection
RPC_CONTROL_FRAMES_PER_S_MAX = 2_000
RPC_RESETS_PER_S_MAX = 200
RPC_RESETS_MANAGER_PER_S_MAX = 20_000
RPC_STREAM_BUFFER_BYTES_MAX = 8 << 20  # a message is accepted while less than this waits to be sent
RPC_CONNECTION_BUFFER_BYTES_MAX = 64 << 20
RPC_CLIENT_BUFFER_BYTES_MAX = 256 << 20
RPC_CONTROL_BUFFER_BYTES_MAX = 1 << 20  # answers that a peer causes but does not read
RPC_OUTPUT_CHUNK_BYTES = 256 << 10
RPC_REFUSALS_PER_S_MAX = 500  # calls on one connection that are forbidden or do not exist
RPC_CONNECTIONS_MAX = 20_000
RPC_CONNECTIONS_PER_ADDRESS_MAX = 10_000
RPC_CONNECTIONS_PER_NODE_MAX = 64
RPC_ANONYMOUS_CONNECTIONS_MAX = 4_096  # without a certificate, also in the handshake; a new one replaces the oldest
RPC_ANONYMOUS_CONNECTIONS_PER_ADDRESS_MAX = 256
RPC_ANONYMOUS_CONNECTIONS_PER_ADDRESS_PER_S_MAX = 200  # a handshake costs 1 ms
RPC_ANONYMOUS_CONNECTIONS_PER_S_MAX = 500  # the same, from all addresses that belong to no node
RPC_KNOWN_ADDRESS_TTL_S = 3600.0  # how long an address counts as a node's after a node connected from it
RPC_KNOWN_ADDRESSES_REFRESH_S = 5.0  # between reads of the nodes' addresses in the store, during a flood
RPC_ANONYMOUS_CALLS_PER_ADDRESS_PER_S_MAX = 500
RPC_ANONYMOUS_CALLS_PER_S_MAX = 2_000  # from all addresses that belong to no node
RPC_UNFINISHED_ANONYMOUS_BYTES_MAX = 2 << 20  # incomplete requests from one address
RPC_UNFINISHED_UNKNOWN_ADDRESSES_BYTES_MAX = 64 << 20  # from all addresses that belong to no node
RPC_UNFINISHED_WORKER_BYTES_MAX = 16 << 20  # from one node
RPC_UNFINISHED_MANAGER_BYTES_MAX = 256 << 20
RPC_STREAM_MESSAGES_AT_ONCE = 4  # of one client stream, waiting for the manager; then flow control stops its client
RPC_STREAM_FORWARDED_BYTES_MAX = 1 << 20  # of one client stream, waiting for the leader
RPC_STREAM_RECHECK_S = 0.05  # while few streams are held back; longer in proportion to their number
RPC_STREAM_RECHECKS_AT_ONCE = 64
LOCAL_STREAM_BYTES_MAX = 32 << 20  # waiting for a reader in this process, who is cut off when it is more
LOCAL_STREAMS_BYTES_MAX = 256 << 20  # for all of them: shared evenly, at worst twice as much
LOCAL_MESSAGE_OVERHEAD_BYTES = 512  # what a message costs besides its fields
RPC_HANDSHAKE_TIMEOUT_S = 10.0
RPC_REQUEST_TIMEOUT_S = 60.0  # from a call's headers to its complete request
RPC_READ_TIMEOUT_S = 60.0  # for a client that does not read its waiting answers
RPC_IDLE_ANONYMOUS_S = 60.0
RPC_IDLE_S = 1_800.0
RPC_SWEEP_PERIOD_S = 5.0
RPC_KEEPALIVE_S = 30.0
RPC_KEEPALIVE_TIMEOUT_S = 20.0
RPC_KEEPALIVE_QUIET_S = 300.0  # stock servers treat more frequent PINGs without other traffic as an attack
RPC_STOP_GRACE_S = 8.0

# --- Engine API ---
API_CONNECTIONS_MAX = 4_096  # of clients; a new one replaces the one that has been idle longest
API_SILENCE_S = 300.0  # for a client that connects and sends nothing, as in stock engines
API_HEAD_READ_S = 60.0  # from the first to the last byte of a request's head (stock engines: 300)
API_BODY_READ_S = 300.0  # for the body of a request to us; requests to the engine have no limit
API_UNFINISHED_BYTES_MAX = 256 << 20  # incomplete heads, and requests to us that are not answered yet
API_UNREAD_BYTES_MAX = 512 << 20  # answers that wait for all clients; above it, those that stopped first are cut off
API_UNREAD_ANSWER_S = 300.0  # for a client that reads nothing of an answer that is no stream
API_UNREAD_REST_S = 3600.0  # the same, of the rest of a stream that has ended; a stream that goes on has no limit
API_UNREAD_SWEEP_S = 30.0
API_LINGER_S = 2.0  # how long a refused client's bytes are read, so that it receives the answer
API_BODY_BYTES_MAX = 4 << 20  # of a request to us; a config of the greatest size is 1.4 MB
API_SWARM_BODY_BYTES_MAX = 512 << 10  # of a request to /swarm or /nodes: the certificates of an authority
API_BODY_INLINE_BYTES_MAX = 64 << 10  # larger ones are parsed in a thread
API_JSON_VALUES_MAX = 20_000  # in one body or filter; a large service has some hundred
API_QUERY_PARAMETERS_MAX = 1_000
API_FRAGMENT_BYTES_MAX = 128 << 20  # cached JSON of objects, for lists
API_LIST_CHUNK_OBJECTS = 200  # converted to JSON without a pause
API_DISCONNECT_POLL_S = 1.0  # how often an idle log stream checks whether its reader has gone
API_NAME_TRIES = 5  # random names tried for a service without a name
API_PATTERN_REPEATS_MAX = 3  # in one name filter: a name of 63 characters takes some 40,000 steps

# --- networks ---
NETWORK_KEYS_KEPT = 3
NETWORK_KEY_ROTATION_S = 12 * 3600.0
VXLAN_PORT = 4789
SUBNET_SIZE_BITS = 24
DEFAULT_ADDRESS_POOL = "10.0.0.0/8"
VNI_FIRST = 4096  # below are the IDs of VLANs
VNI_LAST = (1 << 24) - 1
DYNAMIC_PORT_FIRST = 30000
DYNAMIC_PORT_LAST = 32767

assert ENTRY_BYTES_MAX < TRANSACTION_BYTES_MAX < RAFT_MESSAGE_BYTES_MAX
assert CALL_PLACES_MAX + CALL_PLACES_ANONYMOUS_MAX < INBOX_CALLS_MAX
assert API_CONNECTIONS_MAX < CALL_PLACES_MAX // 2  # each may wait for one call
assert CONFIG_BYTES_MAX < ENTRY_BYTES_MAX
assert RAFT_APPEND_BYTES_MAX + TRANSACTION_BYTES_MAX < RAFT_MESSAGE_BYTES_MAX
assert HEARTBEAT_JITTER_S < HEARTBEAT_PERIOD_S
assert ATTENTION_S < STALL_S < RAFT_ELECTION_TICKS * RAFT_TICK_S
assert RPC_DIAL_TIMEOUT_S + SESSION_BACKOFF_MAX_S + SESSION_FIRST_MESSAGE_S < RETURN_S
assert HEARTBEAT_GRACE_PERIODS < HEARTBEAT_GRACE_UNKNOWN_PERIODS
assert RAFT_MESSAGE_BYTES_MAX <= RPC_MESSAGE_BYTES_MAX < RPC_STREAM_BUFFER_BYTES_MAX < RPC_CONNECTION_BUFFER_BYTES_MAX
assert RPC_MESSAGE_BYTES_MAX <= RPC_GRANT_BYTES_MAX
assert CSR_BYTES_MAX < RPC_MESSAGE_ANONYMOUS_BYTES_MAX < RPC_UNFINISHED_ANONYMOUS_BYTES_MAX
assert RPC_UNFINISHED_ANONYMOUS_BYTES_MAX < RPC_UNFINISHED_UNKNOWN_ADDRESSES_BYTES_MAX
assert RPC_ANONYMOUS_CONNECTIONS_PER_ADDRESS_PER_S_MAX < RPC_ANONYMOUS_CONNECTIONS_PER_S_MAX // 2
assert RPC_MESSAGE_BYTES_MAX <= RPC_UNFINISHED_WORKER_BYTES_MAX < RPC_UNFINISHED_MANAGER_BYTES_MAX
