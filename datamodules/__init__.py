"""Files on disk become batches: one datamodule for each dataset or official format.

A batch is a ``dict[str, Tensor]`` whose field names come from this vocabulary. ``B`` is the number
of samples that one process holds, ``T`` the frames of a clip, ``h, w`` pixels.

===============  =====================  =======  =================================================
field            shape                  dtype    meaning
===============  =====================  =======  =================================================
``image``        (B, 3, h, w)           uint8    RGB pixels, 0..255
``video``        (B, T, 3, h, w)        uint8    RGB frames in time order, 0..255
``video``        (B, K, T, 3, h, w)     uint8    in evaluation: K temporal views of each clip
``video_fast``   (B, M, 3, hf, wf)      uint8    a clip at the fast play rate (M frames)
``video_slow``   (B, N, 3, hs, ws)      uint8    the same clip at the slow play rate (N < M frames)
``mask``         (B, h, w)              int64    class id of each pixel, 255 where void
``label``        (B,)                   int64    class id, 0..C-1
``index``        (B,)                   int64    stable sample id: every per-sample store's key
``name``         list of B strings               file name, relative to the folder it was found in
===============  =====================  =======  =================================================

Pixels leave a datamodule as uint8; the module normalises them on its device. Semi-supervised
training batches nest two such dicts: ``{"labeled": {...}, "unlabeled": {...}}``. An unlabelled
``label``, where it is known, serves logging alone.

A datamodule that knows its classes has ``class_names: list[str]``, whose position is the label.
"""
