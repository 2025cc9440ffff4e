"""The command ``serve``: a model over HTTP, and a page to try it.

Requests are answered by one event loop. Images and prompts are queued and run in batches by one model thread; images
are decoded and masks encoded by a few other threads. Embeddings stay in memory under the digest of their image.
"""
