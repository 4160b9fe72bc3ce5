"""FNV-1a, 64 bits (Fowler, Noll, Vo): the digest of the golden files, small enough to write again in any language."""


def fnv1a(data: bytes) -> str:
    digest = 0xCBF29CE484222325
    for byte in data:
        digest = (digest ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return f"{digest:016x}"
