"""Every limit of a link, in one place, each with its reason."""

GREETING_TIMEOUT_S = 5.0
"""From the end of the TLS handshake to a whole Hello, and from Hello to Welcome."""
MAX_PER_PEER = 64
"""Links of one identity at a time: a misbehaving member cannot take every place."""
MAX_LINKS = 1024
"""Links of one listener, unfinished handshakes included."""

HEADER_TIMEOUT_S = 5.0
"""A header that was begun is finished by then, or the peer is feeding us drop by drop."""
PAYLOAD_GRACE_S = 5.0
MIN_PAYLOAD_BYTES_PER_S = 64 << 10
"""Half a megabit a second: below that no link can take part in inference."""
CHECK_INTERVAL_S = 1.0

MAX_QUEUED_BYTES = 64 << 20
"""What may wait for a slow reader before its link is cut. One frame may add to it: it is looked at before each frame."""
STALLED_TIMEOUT_S = 10.0
"""A peer that takes nothing at all for so long, while something waits for it, is cut off."""
JOIN_BYTES = 64 << 10
"""Smaller frames go out in one write: one TLS record where it fits."""
CHUNK_BYTES = 256 << 10
"""Larger ones in pieces that stay in the processor's cache while they are encrypted."""

ASK_AFTER_TICKS = 2
"""Looks (one each `CHECK_INTERVAL_S`) without a byte from the peer before it is asked whether it is there."""
LOST_AFTER_TICKS = 6
"""Looks without a byte before the link is given up. Looks, not seconds: while our own process is held up nobody else is to blame."""
BULK_BYTES = 64 << 10
"""With more than this on its way to the peer, its acknowledgements count as signs of life: an answer would have to wait behind all that."""

MAX_KEPT_FRAMES = 64
"""Frames kept for a handler that is not set yet; then reading pauses."""
MAX_KEPT_BYTES = 1 << 20
"""The same, by their tensors' bytes."""
CLOSE_TIMEOUT_S = 3.0
"""How long a closing link may take to send what is queued."""
