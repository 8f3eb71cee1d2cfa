"""The science: variational autoencoders with exact likelihoods, in torch and numpy alone.

Legend for shapes: N images, C channels, H height, W width, D latent dimensions, K samples,
P = H·W·C pixel values an image. All log-probabilities and divergences are sums over pixels and
latents, per image, in nats.
"""
