"""Tasks whose right answers are computed: batches without files, to measure what depth is good for.

p_hop       follow "the token after my previous occurrence" p times
"""
