"""Files to documents, in two halves: `read_pieces` runs in one process and streams, `documents` in many.

document     what goes between the two halves, and what is left out
stream       the bytes of a file, decompressed, with its digest
text         a file is a document
jsonl        a line is a document
parquet      a row is a document
token_file   ready-made tokens: llm.c, nanoGPT, Megatron
supervised   prompt and answer, and chats: what of a document is to be learnt
template     the text around prompts, answers and messages
"""
