"""Names of the built-in methods; the networks of a config's ``models`` come on top."""

FILTERS = ("raw", "lowpass", "gaussian", "wiener")
TOPAZ = ("topaz-unet", "topaz-unet-small", "topaz-trained")
BUILT_IN = (*FILTERS, *TOPAZ)
