"""What happens with the epoch: iterative steps between epochs, and what a run shows and guards."""
