"""All solutions of a training problem: optimal sets, smallest networks, paths of weight decay, and how they move."""
