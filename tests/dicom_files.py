"""DICOM files for tests: single pictures, series of slices and enhanced multi-frame files, plain or compressed."""

import copy

import gdcm
import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    generate_uid,
)

NAME = "SECRET^JANE"


def dataset(array, syntax=ExplicitVRLittleEndian, bits=None, **elements):
    """A DICOM data set around stored values [H, W], [H, W, 3] or, with NumberOfFrames, [N, ...]."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = syntax
    data.SOPClassUID = elements.pop("SOPClassUID", CTImageStorage)
    data.SOPInstanceUID = generate_uid()
    data.PatientName, data.PatientID, data.PatientBirthDate = NAME, "12345678", "19600101"
    data.Modality = "CT"
    single = array[0] if "NumberOfFrames" in elements else array
    data.Rows, data.Columns = single.shape[:2]
    data.SamplesPerPixel = 3 if single.ndim == 3 else 1
    data.PhotometricInterpretation = "RGB" if single.ndim == 3 else "MONOCHROME2"
    if single.ndim == 3:
        data.PlanarConfiguration = 0
    data.BitsAllocated = 8 * array.dtype.itemsize
    data.BitsStored = bits or data.BitsAllocated
    data.HighBit = data.BitsStored - 1
    data.PixelRepresentation = int(array.dtype.kind == "i")
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    data.PixelData = array.astype(array.dtype.newbyteorder(order)).tobytes()
    data["PixelData"].VR = "OB" if data.BitsAllocated == 8 else "OW"
    for keyword, value in elements.items():
        setattr(data, keyword, value)
    return data


def save(path, data):
    data.save_as(path, enforce_file_format=True)
    return path


def item(**elements):
    data = Dataset()
    for keyword, value in elements.items():
        setattr(data, keyword, value)
    return data


def gdcm_compress(path, source, syntax):
    """Let gdcm's own encoder write `source` in another transfer syntax."""
    reader = gdcm.ImageReader()
    reader.SetFileName(str(source))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(syntax))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(path))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    return path


SYNTAX = gdcm.TransferSyntax
LOSSLESS = {
    "jpeg_lossless": SYNTAX.JPEGLosslessProcess14,
    "jpeg_lossless_sv1": SYNTAX.JPEGLosslessProcess14_1,
    "jpeg_ls": SYNTAX.JPEGLSLossless,
    "jpeg2000": SYNTAX.JPEG2000Lossless,
    "rle": SYNTAX.RLELossless,
}


def axes(image):
    """Unit vectors along x, y and z of a SimpleITK image, one a row."""
    return np.reshape(image.GetDirection(), (3, 3)).T


def slices(image, **elements):
    """One data set for each slice of a SimpleITK image, in its own order of z, where they belong in the patient.

    Stored values are the image's plus 1024, with an intercept of -1024.
    """
    rows, columns, along = axes(image)
    width, height, depth = image.GetSpacing()
    shared = {"SeriesInstanceUID": generate_uid(), "FrameOfReferenceUID": generate_uid(), "SeriesNumber": 3}
    made = []
    for index, values in enumerate(sitk.GetArrayViewFromImage(image)):
        place = np.array(image.GetOrigin()) + index * depth * along
        made.append(
            dataset(
                (values + 1024).astype(np.uint16),
                **{
                    "ImagePositionPatient": [f"{number:.6f}" for number in place],
                    "ImageOrientationPatient": [f"{number:.10f}" for number in (*rows, *columns)],
                    "PixelSpacing": [height, width],
                    "RescaleSlope": 1,
                    "RescaleIntercept": -1024,
                    "InstanceNumber": 1 + index * 7 % 31,
                    **shared,
                    **elements,
                },
            )
        )
    return made


def write_series(folder, made, seed=0, compress=None):
    """Write slices under names that say nothing about their order; `compress` is one of `SYNTAX`."""
    folder.mkdir(parents=True, exist_ok=True)
    names = np.random.default_rng(seed).permutation(len(made))
    for name, data in zip(names, made, strict=True):
        path = save(folder / f"IM{name:04d}.dcm", data)
        if compress is not None:
            # gdcm rewrites the rescaling and the places of frames: only its pixels are kept.
            pixels = pydicom.dcmread(gdcm_compress(path, path, compress))
            again = copy.deepcopy(data)
            again.file_meta.TransferSyntaxUID = pixels.file_meta.TransferSyntaxUID
            again["PixelData"] = pixels["PixelData"]
            save(path, again)
    return folder


def multiframe(image, order=None, **elements):
    """An enhanced CT of all slices, its frames in the given order; each frame has its own place and rescaling."""
    rows, columns, along = axes(image)
    values = sitk.GetArrayFromImage(image)
    order = list(range(len(values)) if order is None else order)
    width, height, depth = image.GetSpacing()
    frames = []
    for index in order:
        place = np.array(image.GetOrigin()) + index * depth * along
        frames.append(
            item(
                PlanePositionSequence=[item(ImagePositionPatient=[f"{number:.6f}" for number in place])],
                FrameContentSequence=[item(StackID="1", InStackPositionNumber=index + 1)],
                PixelValueTransformationSequence=[
                    item(RescaleSlope=1, RescaleIntercept=-1024 - index, RescaleType="HU")
                ],
            )
        )
    shared = item(
        PlaneOrientationSequence=[item(ImageOrientationPatient=[f"{number:.10f}" for number in (*rows, *columns)])],
        PixelMeasuresSequence=[item(PixelSpacing=[height, width], SliceThickness=99)],
    )
    stored = np.stack([values[index] + 1024 + index for index in order]).astype(np.uint16)
    return dataset(
        stored,
        **{
            "SOPClassUID": EnhancedCTImageStorage,
            "NumberOfFrames": len(order),
            "SharedFunctionalGroupsSequence": [shared],
            "PerFrameFunctionalGroupsSequence": frames,
            **elements,
        },
    )
