"""Names of the built-in methods; a config's ``models`` and ``compare: outside`` come on top."""

LINEAR = ("raw", "lowpass", "gaussian", "wiener")
FILTERS = (*LINEAR, "nlm")
TOPAZ = ("topaz-unet", "topaz-unet-p192", "topaz-unet-small", "topaz-affine", "topaz-trained")
BUILT_IN = (*FILTERS, *TOPAZ)
