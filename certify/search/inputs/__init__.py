"""Complete search by splitting the box of inputs, for networks of few inputs; numpy only."""
