"""What can be predicted: a table, a folder of images with texts, a split of packed shards."""
