"""Records: examples of one length in files, as HRM, TRM, URM and EqR read and write them.

    FOLDER/identifiers.json          the name of every puzzle id
    FOLDER/{train,test}/dataset.json                         sizes and special tokens
    FOLDER/{train,test}/SET__{inputs,labels}.npy             tokens and answers, (N, S)
    FOLDER/{train,test}/SET__puzzle_indices.npy              where the examples of every puzzle begin, (P + 1,)
    FOLDER/{train,test}/SET__puzzle_identifiers.npy          the id of every puzzle, (P,)
    FOLDER/{train,test}/SET__group_indices.npy               where the puzzles of every group begin, (G + 1,)

A group is a puzzle with all that was made of it by augmentation.

format      what is in a part; open and check it
windows     examples as windows with ids
writer      make such a folder
"""
