"""`python -m looplm`."""

if __name__ == "__main__":
    # Here, since worker processes import this module too.
    from looplm.cli import main

    main()
