"""Hot loops of augmentation, compiled: drop-in parts of the library's transforms, with one thread each."""
