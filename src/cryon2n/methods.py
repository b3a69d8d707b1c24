"""Names of the built-in methods; a config's ``models`` and ``compare: outside`` come on top."""

LINEAR = ("raw", "lowpass", "gaussian", "wiener")
FILTERS = (*LINEAR, "nlm")
TOPAZ = ("topaz-unet", "topaz-unet-p192", "topaz-unet-small", "topaz-affine", "topaz-trained")
BUILT_IN = (*FILTERS, *TOPAZ)
EIGHTFOLD = "-x8"  # a model's name with this: the mean over the 8 symmetries of the square, by the same weights


def model_and_symmetries(method: str) -> tuple[str, int]:
    """Return the model that a method of ours is of, and over how many symmetries it takes the mean."""
    model = method.removesuffix(EIGHTFOLD)
    return model, 1 if model == method else 8
