"""From text files to batches of tokens. Nothing here imports jax (Grain does, so `loader` imports it when called).

tokenizer   train, load and apply a tokenizer: SentencePiece or Hugging Face
source      find text files and read documents from them
encode      files -> token arrays on several threads, in order
manifest    what a dataset folder says about itself
shard       write the files of one dataset folder
writer      build a dataset, or a train and a validation dataset, all or nothing
dataset     open, check and read a dataset folder
window      window number -> tokens, labels, segments, positions
index       training step -> window numbers, by arithmetic
loader      batches of this host, for training and for evaluation
synthetic   tasks whose right answers are computed, as batches without files
"""
