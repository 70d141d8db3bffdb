"""`headrace soak`: every fault at random over the whole system, and at the end the proof that nothing was lost and nothing came twice."""
