"""Each integration, with the real program that it extends."""
