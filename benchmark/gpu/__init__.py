"""The acceptance run on one GPU: does what the tests show on CPUs hold on the card, at 8B?"""
