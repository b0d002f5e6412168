"""The tag store: birth, epoch, versions and doubts of each tenant."""
