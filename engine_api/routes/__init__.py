"""The routes of the API: what each request asks of the back end, and what is answered.

Conversion belongs to engine_api/convert; decisions about the cluster belong to swarm.manager.
"""
