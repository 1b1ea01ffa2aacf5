"""The small HTTP framework of the API: requests, decoding, dialects, streams, cached fragments, metrics.

Routes import it and it imports no route; engine_api/app.py puts both together.
"""
