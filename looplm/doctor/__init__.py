"""`looplm doctor`: is this machine, or job, fit to train?"""
