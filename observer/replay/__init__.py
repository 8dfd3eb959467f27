"""What if: a recorded route trace x a policy x a budget. The policies are those that a live cache runs."""
