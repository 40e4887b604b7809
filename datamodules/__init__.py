"""Files on disk become batches: one datamodule for each dataset or official format.

A batch is a ``dict[str, Tensor]`` whose field names come from this vocabulary. ``B`` is the number
of samples that one process holds, ``T`` the frames of a clip, ``h, w`` pixels.

===============  =====================  =======  =================================================
field            shape                  dtype    meaning
===============  =====================  =======  =================================================
``image``        (B, 3, h, w)           uint8    RGB pixels, 0..255
``feature_map``  (B, C, h, w)           float32  of a frozen network, instead of ``image``
``whole``        (1, 3, H, W)           uint8    the photograph of ``image`` at its own size, in prediction
``video``        (B, T, 3, h, w)        uint8    RGB frames in time order, 0..255
``video``        (B, K, T, 3, h, w)     uint8    in evaluation: K temporal views of each clip
``video_fast``   (B, M, 3, hf, wf)      uint8    a clip at the fast play rate (M frames)
``video_slow``   (B, N, 3, hs, ws)      uint8    the same clip at the slow play rate (N < M frames)
``mask``         (B, h, w)              int64    class id of each pixel, 255 where void
``pseudo_mask``  (B, h, w)              int64    the same as a round made it; 0 background, 255 ignored
``score_mask``   (B, h, w)              int64    the true one where no loss may see it: for scores alone
``label``        (B,)                   int64    class id, 0..C-1
``label``        (B, C)                 float32  several classes: 1 for each that the image shows; int64 in tables,
                                                 -1 in a row whose labels training may not know
``left``         (B, h, w)              float32  grey values of a rectified pair, zero mean, unit variance;
                                                 ``right`` alike; training: patches (B, 1, p, p) of the left
                                                 image, with ``match`` and ``other`` of the right one
``guide_left``   (B, h, w)              float32  raw grey values, 8 or 16 bits; ``guide_right`` alike
``valid``        (B, h, w)              bool     where the left image has a value
``truth``        (B, h, w)              float32  true disparity in pixels, NaN where unknown
``range``        (B, 2)                 int64    least and most disparity, pixels
``sign``         (B,)                   int64    x_right = x_left + sign * disparity; 0 where to be found
``spare``        (B,)                   bool     there only in a sample that counts for nothing: more
                                                 processes than samples
``guide``        (h, w)                 int64    superpixels 0..K-1 of one image; ``guide_source``: where they are from
``human``        list of (H, W)         int64    label maps that people drew of one image, at full ``size`` (H, W)
``ucm2``         (2H + 1, 2W + 1)       float64  its hierarchy of boundaries; only for the method that reads it
``setting``      int                             position in the module's list of settings, in training
``features``     (B, d)                 float64  columns of a table, scaled; sparse CSR where the file is sparse
``target``       (B,)                   float64  what is regressed, in the file's unit
``labelled``     (B,)                   bool     whether training may know the row's label; where not, it is -1
``index``        (B,)                   int64    stable sample id: every per-sample store's key
``name``         list of B strings               file name, relative to the folder it was found in
===============  =====================  =======  =================================================

Pixels leave a datamodule as uint8, stereo pairs excepted; the module normalises them on its device. Semi-supervised
training batches nest two such dicts: ``{"labeled": {...}, "unlabeled": {...}}``. An unlabelled
``label``, where it is known, serves logging alone. For methods that take one image at a time (``guide``) a
batch is one sample as it is, without the axis B.

A datamodule that knows its classes has ``class_names: list[str]``, whose position is the label.
"""
