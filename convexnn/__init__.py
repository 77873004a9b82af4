"""Train small ReLU networks to the global optimum through convex reformulations."""
