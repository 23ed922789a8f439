"""What a run says of itself while it runs: counts that only grow, of each process, and sums of them."""
