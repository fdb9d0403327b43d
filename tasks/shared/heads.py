"""How the width of a transformer is split among its heads."""


def check_heads(width: int, heads: int) -> None:
    """Raises ValueError where a head's part is not made of pairs, which rotary positions turn."""
    if width % (2 * heads):
        raise ValueError(
            f"width is split among the heads, and each part in pairs: {width} is no multiple of {2 * heads}"
        )
