"""Puzzles on grids, made into folders of records: a function of the options and a seed, all or nothing.

solver         many Sudokus side by side
classes        which Sudokus are the same but for symmetry
sudoku         puzzles of a wanted difficulty
maze           mazes with one path
encoding       grids of colours as rows of tokens, and back
augmentation   turned and recoloured tasks, and the way back
arc            tasks of the public ARC files
rules          tasks like those of ARC that are made up
votes          two attempts from many predictions
"""
