"""What a remedy offers where a size has to divide another."""


def divisors(n: int) -> str:
    """All of them, as a list for people."""
    return ", ".join(str(d) for d in range(1, n + 1) if n % d == 0)
