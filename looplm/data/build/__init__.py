"""How `writer` builds a dataset: groups of files are encoded into unit files, and these are put together.

plan       the input in groups; what is done of a group is kept under a name that depends on all that it depends on
unit       a file with the tokens and the list of the documents of some megabytes of input
encode     groups to units on several processes
assemble   units to datasets: copies left out, parts, order
report     what was built, and what was left out and why
"""
