"""Builds the nodes of OPC 40100-1 (OPC UA for Machine Vision) that are offered in a server."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flawline.runtime.outputs.vision_states import AUTOMATIC
from flawline.runtime.outputs.vision_tables import (
    AUTOMATIC_MODE,
    CONFIGURATIONS,
    METHODS,
    OBJECT_TYPES,
    RECIPES,
    RESULT,
    RESULT_ID,
    RESULTS,
    SIMPLE_TYPES,
    STATE_MACHINE,
    STATES,
    STRUCTURES,
    SYSTEM,
)

if TYPE_CHECKING:
    from asyncua import Node, Server


@dataclass(frozen=True)
class VisionNodes:
    """The nodes that are written to.

    They are the two current states, the result shown, the active configuration and the events.
    """

    state: Node
    state_id: Node
    automatic: Node
    automatic_id: Node
    result: Node
    configuration: Node
    events: Any
    model: int


class Model:
    """Builds the nodes in a server. `index` is that of NAMESPACE, `own` that of OWN_NAMESPACE.

    The nodes of the instance have their paths as identifiers.
    """

    def __init__(self, server: Server, index: int, own: int) -> None:
        self._server = server
        self._index = index
        self._own = own

    async def build(self, methods: Mapping[str, Callable[..., Any]]) -> VisionNodes:
        """Add types and instance; `methods` are the functions of METHODS."""
        await self._add_data_types()
        await self._server.load_data_type_definitions()
        await self._add_object_types()
        system = await self._add_object(self._server.nodes.objects, SYSTEM, "VisionSystemType")
        machine = await self._add_object(system, STATE_MACHINE, "VisionStateMachineType")
        automatic = await self._add_object(
            machine, AUTOMATIC_MODE, "VisionAutomaticModeStateMachineType"
        )
        results = await self._add_object(system, RESULTS, "ResultManagementType")
        recipes = await self._add_object(system, RECIPES, "RecipeManagementType")
        configurations = await self._add_object(
            system, CONFIGURATIONS, "ConfigurationManagementType"
        )
        folder = await self._add_object(results, f"{RESULTS}.Results", "ResultFolderType")
        objects = {
            STATE_MACHINE: machine,
            AUTOMATIC_MODE: automatic,
            RESULTS: results,
            RECIPES: recipes,
            CONFIGURATIONS: configurations,
        }
        for name, (parent, inputs, outputs) in METHODS.items():
            await objects[parent].add_method(
                self._own_id(f"{parent}.{name}"),
                self._name(name),
                methods[name],
                [self._argument(text) for text in inputs],
                [self._argument(text) for text in outputs],
            )
        state = await machine.get_child("0:CurrentState")
        automatic_state = await automatic.get_child("0:CurrentState")
        return VisionNodes(
            state,
            await state.get_child("0:Id"),
            automatic_state,
            await automatic_state.get_child("0:Id"),
            await self._add_variable(folder, f"{RESULTS}.Results.Result", "ResultDataType"),
            await self._add_variable(
                configurations, f"{CONFIGURATIONS}.ActiveConfiguration", "ConfigurationDataType"
            ),
            await self._event_generator(system),
            self._index,
        )

    async def _add_variable(self, parent: Node, path: str, kind: str) -> Node:
        """Add a variable that holds a structure, still without a value."""
        from asyncua import ua

        return await parent.add_variable(
            self._own_id(path),
            self._name(path.rpartition(".")[2]),
            None,
            ua.VariantType.ExtensionObject,
            self._id(STRUCTURES[kind][0]),
        )

    async def _event_generator(self, system: Node) -> Any:
        """Return what sends the events of results, whose fields have no values yet."""
        from asyncua import ua

        built_in = {"ResultStateDataType": "Int32", "UtcTime": "DateTime", "Boolean": "Boolean"}
        event_type = self._id(OBJECT_TYPES["ResultReadyEventType"][0])
        generator = await self._server.get_event_generator(event_type, system)
        for text in (RESULT_ID, *RESULT):
            field, kind, _, is_array = _parse(text)
            # Without a value, the library does not know the type.
            name = "Variant" if is_array else built_in.get(kind, "ExtensionObject")
            generator.event.data_types[field] = ua.VariantType[name]
        return generator

    async def _add_data_types(self) -> None:
        from asyncua import ua
        from asyncua.common.manage_nodes import create_data_type, create_encoding
        from asyncua.common.structures104 import new_struct_field

        for name, (number, base) in SIMPLE_TYPES.items():
            parent = self._server.get_node(ua.NodeId(base))
            await create_data_type(parent, self._id(number), self._name(name))
            # The library takes those whose names OPC UA itself has, too, for the same.
            ua.register_basetype(name, self._id(number), getattr(ua, ua.ObjectIdNames[base]))
        for name, (number, encoding_number, texts) in STRUCTURES.items():
            parent = self._server.nodes.base_structure_type
            data_type = await create_data_type(parent, self._id(number), self._name(name))
            encoding = await create_encoding(
                data_type, self._id(encoding_number), ua.QualifiedName("Default Binary", 0)
            )
            definition = ua.StructureDefinition()
            definition.BaseDataType = parent.nodeid
            definition.DefaultEncodingId = encoding.nodeid
            definition.StructureType = ua.StructureType.Structure
            for text in texts:
                field, kind, is_optional, is_array = _parse(text)
                if is_optional:
                    definition.StructureType = ua.StructureType.StructureWithOptionalFields
                definition.Fields.append(
                    new_struct_field(field, self._type_id(kind), is_array, is_optional)
                )
            await data_type.write_data_type_definition(definition)

    async def _add_object_types(self) -> None:
        from asyncua import ua

        types = {}
        for name, (number, base) in OBJECT_TYPES.items():
            parent = self._server.get_node(ua.NodeId(base))
            types[name] = await parent.add_object_type(self._id(number), self._name(name))
        for state, number in STATES.items():
            machine = types["VisionStateMachineType"]
            if state in AUTOMATIC:
                machine = types["VisionAutomaticModeStateMachineType"]
            state_type = ua.NodeId(ua.ObjectIds.StateType)
            await machine.add_object(self._id(number), self._name(state), state_type)
        for text in (RESULT_ID, *RESULT):
            field, kind, _, _ = _parse(text)
            await types["ResultReadyEventType"].add_property(
                ua.NodeId(0, self._index),
                self._name(field),
                None,
                ua.VariantType.Null,
                self._type_id(kind),
            )

    async def _add_object(self, parent: Node, path: str, kind: str) -> Node:
        name = self._name(path.rpartition(".")[2])
        return await parent.add_object(self._own_id(path), name, self._id(OBJECT_TYPES[kind][0]))

    def _argument(self, text: str) -> Any:
        from asyncua import ua

        name, kind, _, is_array = _parse(text)
        rank = 1 if is_array else -1
        return ua.Argument(Name=name, DataType=self._type_id(kind), ValueRank=rank)

    def _type_id(self, kind: str) -> Any:
        """Return the identifier of a data type of the model, or of OPC UA itself."""
        from asyncua import ua

        if kind in STRUCTURES:
            return self._id(STRUCTURES[kind][0])
        if kind in SIMPLE_TYPES:
            return self._id(SIMPLE_TYPES[kind][0])
        return ua.NodeId(getattr(ua.ObjectIds, kind))

    def _id(self, number: int) -> Any:
        from asyncua import ua

        return ua.NodeId(number, self._index)

    def _own_id(self, path: str) -> Any:
        from asyncua import ua

        return ua.NodeId(path, self._own)

    def _name(self, name: str) -> Any:
        from asyncua import ua

        return ua.QualifiedName(name, self._index)


def _parse(text: str) -> tuple[str, str, bool, bool]:
    """Return name, type, whether it is optional and whether it is an array."""
    name, kind = text.split()
    is_optional = kind.endswith("?")
    kind = kind.removesuffix("?")
    return name, kind.removesuffix("[]"), is_optional, kind.endswith("[]")
