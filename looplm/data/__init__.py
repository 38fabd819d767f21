"""From text files to batches of tokens. Nothing here imports jax (Grain does, so `loader` imports it when called).

tokenizer   train, load and apply a tokenizer: SentencePiece or Hugging Face
folder      folders that are written to
source      find the files that a user names
formats     files -> documents: text, JSON lines, parquet, ready-made tokens; plain or supervised
manifest    what a dataset folder says about itself
shard       write the files of one dataset folder
build       the parts of a build: groups of files, units, putting together, report
writer      build a dataset, or a train and a validation dataset, all or nothing, and go on after a kill
inspect     what is in a dataset, for people
dataset     open, check and read a dataset folder
remote      read and write files at addresses: byte ranges, a local cache
place       the folder of a build on a disk or at an address
window      window number -> tokens, labels, segments, positions
packing     windows of whole documents, by best fit
records     examples with answers in files, as recursive reasoners read them
grids       puzzles on grids, made into such files
synthetic   tasks whose right answers are computed, as windows without files
index       the order of a source's windows, by arithmetic
schedule    which source every example of a mixture is from, by arithmetic
mixture     training step -> examples, from one source or several
held_out    what a depth sweep reads
loader      batches of this host, for training and for evaluation
"""
