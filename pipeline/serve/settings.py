"""Options of ``serve``. Each field is an option of the command line."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from pipeline.core.config import Config

_Positive = Annotated[int, Field(ge=1)]
_Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]


class ServeSettings(Config):
    """Address, limits and batching of the server."""

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 makes the server reachable from other machines."""
    port: Annotated[int, Field(ge=0, le=65_535)] = 8000
    """Port to listen on; 0 takes a free one."""
    api_key_file: Path | None = None
    """File with the key that requests must send as `Authorization: Bearer KEY`; default: the environment's
    SAM_DISTILLERY_API_KEY, and without it no key is needed."""
    allowed_hosts: tuple[str, ...] = ()
    """Accepted names in the Host header; default: local names on a loopback address, otherwise all."""
    tls_certificate: Path | None = None
    """PEM file with the certificate chain; enables HTTPS with --tls-key."""
    tls_key: Path | None = None
    """PEM file with the certificate's private key."""
    device: str | None = None
    """Device as torch names it; default: the artifact's own."""
    threads: _Positive | None = None
    """Processor threads of one model call; default: the runtime's choice."""
    workers: _Positive = 2
    """Threads that decode images and encode masks."""
    keep_mib: Annotated[int, Field(ge=0)] = 512
    """Memory for embeddings and their images; the least recently used are dropped. 0 keeps none."""
    max_batch: _Positive = 16
    """Most prompts or images of one model call; 1 disables batching."""
    max_body_mib: _Positive = 32
    """Largest request body."""
    max_pixels: _Positive = 40_000_000
    """Largest image, height times width."""
    max_prompts: _Positive = 256
    """Most prompts of a request."""
    max_queue: _Positive = 256
    """Most requests in progress; others are answered with 429."""
    max_everything: _Positive = 8
    """Most requests for everything in progress, of which one runs at a time."""
    timeout_s: _Seconds = 30.0
    """Longest time of a request, from its first byte to its answer; everything has ten times as long."""
    watch_s: _Seconds = 10.0
    """Seconds between looks at the registry, where a models:/NAME@ALIAS may have moved."""
