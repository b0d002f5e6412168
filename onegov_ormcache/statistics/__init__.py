"""What a cache has done, in numbers: counted by each process, and summed over all of them."""
