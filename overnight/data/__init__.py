"""The bytes of a data set: brought here, verified, unpacked, read and counted."""
