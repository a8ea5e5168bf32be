"""What a finished run's client says about images: ``client`` restores it, ``images`` predicts, ``show`` prints."""
