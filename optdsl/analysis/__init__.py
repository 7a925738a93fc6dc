"""Looking at methods: their equations as people write them, and what they cost beside other implementations."""
