"""The ground floor: tools that know nothing of models, data or training.

atomic_write   files and directories that are whole or absent
file_lock      a lock that ends with its process
hashed_random  random numbers and permutations as a pure function of a key
durations      90, 1:30 or 01:00:00 as seconds
settings_yaml  YAML as configurations write it
registry       parts by name: fusion heads, losses, encoder families, trackers
"""
