"""The controls that a sceptical reader asks for, a module each.

matched      do random neurons of the same layers and activation do the same?
dose         how many neurons hold half, and 90 %, of the probability?
selectivity  what else do a fact's neurons carry?
erasing      does the model still work without them?
choice       do other attributions, or a direct search, choose better neurons?
activators   what in a prompt makes them fire?
"""
