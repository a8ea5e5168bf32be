"""PromptFL + FT, FedPer, FedAMP and FedPGP: their arithmetic, and federations on the embedded CLIP and data.

Expected values are worked out in the test, come from FedPGP's release (tests/golden), or are another method's run that
must agree to the bit.
"""
