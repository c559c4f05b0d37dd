"""Identifiers, names, fields and arguments of OPC 40100-1 (OPC UA for Machine Vision) 1.00.

They are those of the standard, so that clients that know its node set understand the nodes. A field
or an argument is written as its name and its type; a question mark is an optional one, brackets are
an array.
"""

from __future__ import annotations

from flawline.runtime.outputs.vision_states import ERROR, HALTED, OPERATIONAL, PREOPERATIONAL

NAMESPACE = "http://opcfoundation.org/UA/MachineVision"
OWN_NAMESPACE = "urn:flawline:vision"
SYSTEM = "VisionSystem"
# Name -> identifier, and the base type in namespace 0.
SIMPLE_TYPES = {"TrimmedString": (3017, 12), "Handle": (3018, 7), "ResultStateDataType": (3009, 6)}
OBJECT_TYPES = {
    "VisionSystemType": (1003, 58),
    "RecipeManagementType": (1004, 58),
    "ConfigurationManagementType": (1006, 58),
    "ResultManagementType": (1007, 58),
    "ResultFolderType": (1016, 61),
    "VisionStateMachineType": (1017, 2771),
    "VisionAutomaticModeStateMachineType": (1021, 2771),
    "ResultReadyEventType": (1024, 2041),
}
STATES = {
    PREOPERATIONAL: 5028,
    HALTED: 5029,
    ERROR: 5030,
    OPERATIONAL: 5031,
    "Initialized": 5056,
    "Ready": 5057,
    "SingleExecution": 5058,
    "ContinuousExecution": 5059,
}
IDENTIFIED = "Id TrimmedString", "Description LocalizedText?"
BINARY = (
    "Id TrimmedString",
    "Version TrimmedString?",
    "Hash ByteString?",
    "HashAlgorithm String?",
    "Description LocalizedText?",
)
RESULT = (
    "IsPartial Boolean",
    "IsSimulated Boolean?",
    "ResultState ResultStateDataType",
    "MeasId MeasIdDataType?",
    "PartId PartIdDataType?",
    "ExternalRecipeId RecipeIdExternalDataType?",
    "InternalRecipeId RecipeIdInternalDataType",
    "ProductId ProductIdDataType?",
    "ExternalConfigurationId ConfigurationIdDataType?",
    "InternalConfigurationId ConfigurationIdDataType",
    "JobId JobIdDataType",
    "CreationTime UtcTime",
    "ProcessingTimes ProcessingTimesDataType?",
    "ResultContent BaseDataType[]?",
)
TIMES = (
    "StartTime UtcTime",
    "EndTime UtcTime",
    "AcquisitionDuration Duration?",
    "ProcessingDuration Duration?",
)
RESULT_ID = "ResultId ResultIdDataType"
# Name -> identifier, that of the binary encoding (0: chosen by the server), and the fields.
STRUCTURES = {
    "MeasIdDataType": (3015, 5006, IDENTIFIED),
    "PartIdDataType": (3004, 5013, IDENTIFIED),
    "JobIdDataType": (3016, 5008, ("Id TrimmedString",)),
    "ResultIdDataType": (3021, 5274, ("Id TrimmedString",)),
    "ProductIdDataType": (3003, 0, IDENTIFIED),
    "RecipeIdExternalDataType": (3002, 5002, BINARY),
    "RecipeIdInternalDataType": (3013, 5268, BINARY),
    "ConfigurationIdDataType": (3008, 5090, BINARY),
    "ConfigurationDataType": (
        3007,
        5088,
        (
            "HasTransferableDataOnFile Boolean?",
            "ExternalId ConfigurationIdDataType?",
            "InternalId ConfigurationIdDataType",
            "LastModified UtcTime",
        ),
    ),
    "ProcessingTimesDataType": (3005, 5016, TIMES),
    "ResultDataType": (
        3006,
        5018,
        (RESULT_ID, "HasTransferableDataOnFile Boolean?", *RESULT),
    ),
}
START = (
    "MeasId MeasIdDataType",
    "PartId PartIdDataType",
    "RecipeId RecipeIdExternalDataType",
    "ProductId ProductIdDataType",
    "Parameters BaseDataType[]",
)
CAUSE = ("Cause Int32", "CauseDescription String")
ERRORS = ("Error Int32",)
FILTER = (
    "ResultState ResultStateDataType",
    "MeasId MeasIdDataType",
    "PartId PartIdDataType",
    "ExternalRecipeId RecipeIdExternalDataType",
    "InternalRecipeId RecipeIdInternalDataType",
    "ExternalConfigurationId ConfigurationIdDataType",
    "InternalConfigurationId ConfigurationIdDataType",
    "ProductId ProductIdDataType",
    "JobId JobIdDataType",
    "MaxResults UInt32",
    "StartIndex UInt32",
    "Timeout Int32",
)
STATE_MACHINE = f"{SYSTEM}.VisionStateMachine"
AUTOMATIC_MODE = f"{STATE_MACHINE}.AutomaticModeStateMachine"
RESULTS = f"{SYSTEM}.ResultManagement"
RECIPES = f"{SYSTEM}.RecipeManagement"
CONFIGURATIONS = f"{SYSTEM}.ConfigurationManagement"
# Method -> the object that has it, its input arguments and its output arguments.
METHODS = {
    "Halt": (STATE_MACHINE, CAUSE, ERRORS),
    "Reset": (STATE_MACHINE, CAUSE, ERRORS),
    "SelectModeAutomatic": (STATE_MACHINE, (), ERRORS),
    "StartSingleJob": (AUTOMATIC_MODE, START, ("JobId JobIdDataType", *ERRORS)),
    "StartContinuous": (AUTOMATIC_MODE, START, ("JobId JobIdDataType", *ERRORS)),
    "Stop": (AUTOMATIC_MODE, CAUSE, ERRORS),
    "Abort": (AUTOMATIC_MODE, CAUSE, ERRORS),
    "SimulationMode": (AUTOMATIC_MODE, ("Activate Boolean", *CAUSE), ERRORS),
    "GetResultById": (
        RESULTS,
        (RESULT_ID, "Timeout Int32"),
        ("ResultHandle Handle", "Result ResultDataType", *ERRORS),
    ),
    "GetResultComponentsById": (
        RESULTS,
        (RESULT_ID, "Timeout Int32"),
        ("HasTransferableDataOnFile Boolean", "ResultHandle Handle", *RESULT, *ERRORS),
    ),
    "GetResultListFiltered": (
        RESULTS,
        FILTER,
        (
            "IsComplete Boolean",
            "ResultCount UInt32",
            "ResultHandle Handle",
            "ResultList ResultDataType[]",
            *ERRORS,
        ),
    ),
    "ReleaseResultHandle": (RESULTS, ("ResultHandle Handle",), ERRORS),
    "GetConfigurationList": (
        CONFIGURATIONS,
        ("MaxResults UInt32", "StartIndex UInt32", "Timeout Int32"),
        (
            "IsComplete Boolean",
            "ResultCount UInt32",
            "ConfigurationHandle Handle",
            "ConfigurationList ConfigurationDataType[]",
            *ERRORS,
        ),
    ),
    "GetConfigurationById": (
        CONFIGURATIONS,
        ("InternalId ConfigurationIdDataType", "Timeout Int32"),
        ("ConfigurationHandle Handle", "Configuration ConfigurationDataType", *ERRORS),
    ),
    "ActivateConfiguration": (CONFIGURATIONS, ("InternalId ConfigurationIdDataType",), ERRORS),
    "GetRecipeListFiltered": (
        RECIPES,
        (
            "ExternalId RecipeIdExternalDataType",
            "ProductId ProductIdDataType",
            # The enumeration TriStateBooleanDataType of the standard: 0 false, 1 true, 2 either.
            "IsPrepared Int32",
            "MaxResults UInt32",
            "StartIndex UInt32",
            "Timeout Int32",
        ),
        (
            "IsComplete Boolean",
            "ResultCount UInt32",
            "RecipeHandle Handle",
            "RecipeList RecipeIdInternalDataType[]",
            *ERRORS,
        ),
    ),
    "PrepareRecipe": (
        RECIPES,
        ("ExternalId RecipeIdExternalDataType", "InternalIdIn RecipeIdInternalDataType"),
        ("InternalIdOut RecipeIdInternalDataType", "IsCompleted Boolean", *ERRORS),
    ),
    "UnprepareRecipe": (
        RECIPES,
        ("ExternalId RecipeIdExternalDataType", "InternalIdIn RecipeIdInternalDataType"),
        ("InternalIdOut RecipeIdInternalDataType", *ERRORS),
    ),
}
