"""What is to be made: requests, and the rows in which they are sampled together."""
