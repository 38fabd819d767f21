"""How `writer` builds a dataset: groups of files are encoded into unit files, and these are put together.

request    what is asked for: files, tokenizer, reading, options; the digest that names a build
plan       the input in groups; what is done of a group is kept under a name that depends on all that it depends on
unit       a file with the tokens and the list of the documents of some megabytes of input
encode     groups to units on several processes
assemble   units to datasets: copies left out, sides, order
whole      the dataset folder, from all units, or what is there already
work       the folder that a build works in, and its lock
part       units of a share of the groups, on a machine of its own
join       the whole from parts
engine     what makes parts: this process, or Ray
report     what was built, and what was left out and why
"""
